"""train.py with a fault at step 5 of its second process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from prunezoo.training import loop
from prunezoo.training.ending import leave

after = loop.after_step


def broken(run):
    after(run)
    if (run.rank, run.work) == (1, 5):
        {}["x"]


loop.after_step = broken
leave(train.main())
