"""Constants that a convolution adds in place of the channels that it no longer reads."""

from torch import Tensor, nn


class MappedConv2d(nn.Conv2d):
    """A convolution that adds a constant map (O, H, W) to its output: y = conv(x) + bias_map.

    Under zero padding a constant channel gives less near the border than inside, so no single
    bias can stand for it. The map is made for one image size.
    """

    bias_map: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """conv(input) + bias_map.

        Raises:
            ValueError: if the output is not of the map's size.
        """
        output = super().forward(input)
        if output.shape[-2:] != self.bias_map.shape[-2:]:
            raise ValueError(
                f"the bias map was made for outputs of {tuple(self.bias_map.shape[-2:])}, not "
                f"{tuple(output.shape[-2:])}: use images of the size it was made with, or "
                "padding: paper, which needs no map"
            )
        return output + self.bias_map


def add_bias_map(conv: nn.Module, bias_map: Tensor) -> None:
    """Add a map (O, H, W) to the output of a convolution, in place.

    The object stays the same one, so optimizers, hooks and references need no update.

    Raises:
        TypeError: for anything but a plain `nn.Conv2d`, whose own forward would be lost.
    """
    if isinstance(conv, MappedConv2d):
        conv.bias_map += bias_map
    elif type(conv) is nn.Conv2d:
        conv.register_buffer("bias_map", bias_map)
        conv.__class__ = MappedConv2d
    else:
        raise TypeError(f"{type(conv).__name__} cannot carry a bias map; use padding: paper")
