"""Small networks of the papers, and one for 8×8 digits."""

import itertools

from torch import nn

from prunezoo.models.layers import conv_bn_relu, conv_relu, named, output_units, scaled


def digits_cnn(num_classes: int, in_channels: int, *, width: float = 1.0) -> nn.Sequential:
    """Four convolutions with BatchNorm for 8×8 handwritten digits; the quickstart's network."""
    w16, w32 = scaled(16, width), scaled(32, width)
    return named(
        features=nn.Sequential(
            *conv_bn_relu(in_channels, w16, 3, padding=1),
            *conv_bn_relu(w16, w16, 3, padding=1),
            nn.MaxPool2d(2),
            *conv_bn_relu(w16, w32, 3, padding=1),
            *conv_bn_relu(w32, w32, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        classifier=nn.Linear(w32, num_classes),
    )


def bep_small_cnn(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """The small CNN of BEP's CIFAR experiments (figure 2), which is Keras's `cifar10_cnn`.

    The dropout rates are that example's; the paper does not state them. Two of the convolutions
    are unpadded, which the paper's FLOPs prove. Softmax is part of the loss.
    """
    w32, w64, w512 = (scaled(units, width) for units in (32, 64, 512))
    features = nn.Sequential(
        *conv_relu(in_channels, w32, 3, padding=1),
        *conv_relu(w32, w32, 3),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        *conv_relu(w32, w64, 3, padding=1),
        *conv_relu(w64, w64, 3),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
    )
    units = output_units(features, in_channels, image_size)
    return named(
        features=features,
        hidden=nn.Sequential(nn.Linear(units, w512), nn.ReLU(), nn.Dropout(0.5)),
        classifier=nn.Linear(w512, num_classes),
    )


def mnist_cnn(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 28
) -> nn.Sequential:
    """The MNIST network of the foresight thesis (table 4.1), which is Caffe's LeNet-5."""
    w20, w50, w500 = (scaled(units, width) for units in (20, 50, 500))
    features = nn.Sequential(
        *conv_relu(in_channels, w20, 5),
        nn.MaxPool2d(2),
        *conv_relu(w20, w50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    units = output_units(features, in_channels, image_size)
    return named(
        features=features,
        hidden=nn.Sequential(nn.Linear(units, w500), nn.ReLU()),
        classifier=nn.Linear(w500, num_classes),
    )


def lenet_300(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 28
) -> nn.Sequential:
    """LeNet-300-100: two hidden layers of 300 and 100 units, without convolutions.

    LeCun et al. 1998, "Gradient-based learning applied to document recognition", figure 9:
    "28x28-300-100-10". ReLU in place of its scaled tanh, as papers on pruning have it.
    """
    w300, w100 = scaled(300, width), scaled(100, width)
    return named(
        hidden=nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * image_size**2, w300),
            nn.ReLU(),
            nn.Linear(w300, w100),
            nn.ReLU(),
        ),
        classifier=nn.Linear(w100, num_classes),
    )


def mlp(
    num_classes: int, in_channels: int, *, width: float = 1.0, units: int = 64, depth: int = 2
) -> nn.Sequential:
    """`depth` hidden layers of `units` units on a vector of `in_channels` numbers."""
    units = scaled(units, width)
    sizes = [in_channels, *[units] * depth]
    layers = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
    return named(
        hidden=nn.Sequential(*itertools.chain.from_iterable(layers)),
        classifier=nn.Linear(sizes[-1], num_classes),
    )


def small_conv(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """Mean Replacement's `small_conv` (section 6.3): unpadded, a classifier added to its list."""
    return _mean_replacement_conv(
        num_classes, in_channels, image_size, [scaled(n, width) for n in (32, 64, 128, 512, 128)]
    )


def medium_conv(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 32
) -> nn.Sequential:
    """Mean Replacement's `medium_conv` (section 6.3): unpadded, a classifier added to its list."""
    return _mean_replacement_conv(
        num_classes, in_channels, image_size, [scaled(n, width) for n in (64, 128, 256, 1024, 256)]
    )


def _mean_replacement_conv(
    num_classes: int, in_channels: int, image_size: int, widths: list[int]
) -> nn.Sequential:
    """Three convolutions, each with a pool, and two hidden layers of the given `widths`."""
    conv1, conv2, conv3, fc1, fc2 = widths
    features = nn.Sequential(
        *conv_relu(in_channels, conv1, 5),
        nn.MaxPool2d(2),
        *conv_relu(conv1, conv2, 3),
        nn.MaxPool2d(2),
        *conv_relu(conv2, conv3, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    units = output_units(features, in_channels, image_size)
    return named(
        features=features,
        hidden=nn.Sequential(nn.Linear(units, fc1), nn.ReLU(), nn.Linear(fc1, fc2), nn.ReLU()),
        classifier=nn.Linear(fc2, num_classes),
    )


def alexnet(
    num_classes: int, in_channels: int, *, width: float = 1.0, image_size: int = 227
) -> nn.Sequential:
    """Mean Replacement's `alexnet` as section 6.3 lists it, a classifier added.

    Taken literally: no padding, which the paper does not print, and no pool after the fifth
    convolution. So it has 50.8 M parameters where Krizhevsky's has 62.4 M.
    """
    w96, w256, w384, w4096 = (scaled(units, width) for units in (96, 256, 384, 4096))
    features = nn.Sequential(
        *conv_relu(in_channels, w96, 11, stride=4),
        nn.MaxPool2d(3, 2),
        *conv_relu(w96, w256, 5),
        nn.MaxPool2d(3, 2),
        *conv_relu(w256, w384, 3),
        *conv_relu(w384, w384, 3),
        *conv_relu(w384, w256, 3),
        nn.Flatten(),
    )
    units = output_units(features, in_channels, image_size)
    return named(
        features=features,
        hidden=nn.Sequential(
            nn.Linear(units, w4096), nn.ReLU(), nn.Linear(w4096, w4096), nn.ReLU()
        ),
        classifier=nn.Linear(w4096, num_classes),
    )
