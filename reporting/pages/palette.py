"""Okabe and Ito's colours, which colour-blind readers tell apart."""

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
BLACK = "#000000"
OKABE_ITO = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
