"""Augmentation of whole batches on the device, as a function of uniform draws made beforehand."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prunezoo.schema.data import AugmentConfig

# Columns of the table of draws, fixed: switching one augmentation on leaves the others' draws alone
TOP, LEFT, FLIP, CUT_Y, CUT_X, ANGLE = range(6)
ON_DEVICE = SCALE = 6  # the first column after those is the size of a picture with masks or boxes
IN_CACHE = 2**18  # numbers in a CPU core's own cache, 1 MiB
TRIES = 10  # of a random-resized-crop, or of erasing
CROP = slice(ON_DEVICE, ON_DEVICE + 2 * TRIES + 2)  # area and aspect of each try, then top and left
FURTHER = 2 + 2 * TRIES + 3  # last columns, where a recipe asks for a policy, colours or erasing
SEED = slice(-FURTHER, 2 - FURTHER)  # of a policy
ERASE = slice(2 - FURTHER, None)  # area and aspect of each try, then top, left, and whether
ERASED, ASPECT = (0.02, 0.33), (0.3, 3.3)  # torchvision's and timm's ranges of area and aspect


def draws(count: int, config: AugmentConfig, source: torch.Generator) -> Tensor:
    """One row of uniform numbers in [0, 1) per image, (count, columns), float32 on the CPU."""
    crop = CROP.stop - CROP.start if config.random_resized_crop else int(config.scale is not None)
    table = torch.rand(count, ON_DEVICE + crop, generator=source)
    if not (config.policy or config.colour or config.erasing):
        return table
    # a table of its own: the columns before are as they would be without it
    return torch.cat([table, torch.rand(count, FURTHER, generator=source)], 1)


def window(images: Tensor, rows: Tensor, draws: Tensor | None, padding: int, flip: bool) -> Tensor:
    """Images `rows` cut out of their border of `padding` pixels, (n, C, H, W) in the given dtype.

    With draws the window lies at a random place and is mirrored with probability ½ (if `flip`);
    without draws it is the centre. `images` is (N, C, H + 2·padding, W + 2·padding), contiguous.
    One gather of whole pixel rows, one of pixels inside them: no loop over images.
    """
    channels, tall, wide = images.shape[1:]
    n, height, width = len(rows), tall - 2 * padding, wide - 2 * padding
    if draws is None:
        picked = images.index_select(0, rows)
        return picked[..., padding : padding + height, padding : padding + width].contiguous()
    if not padding and not flip:
        return images.index_select(0, rows)
    device = images.device
    places = 2 * padding + 1
    top, left = (draws[:, TOP : LEFT + 1] * places).long().unbind(1)
    ascending = torch.arange(width, device=device)
    columns = ascending.expand(n, width)
    if flip:
        columns = torch.where(draws[:, FLIP, None] < 0.5, ascending.flip(0), ascending)
    planes = rows[:, None] * channels + torch.arange(channels, device=device)
    lines = (planes * tall + top[:, None])[..., None] + torch.arange(height, device=device)
    strips = images.view(-1, wide).index_select(0, lines.view(-1)).view(n, -1, wide)
    columns = (columns + left[:, None])[:, None].expand(n, strips.shape[1], width)
    return strips.gather(2, columns).view(n, channels, height, width)


def finish(
    images: Tensor, draws: Tensor | None, config: AugmentConfig, colour: tuple[Tensor, Tensor]
) -> Tensor:
    """uint8 windows → rotated, resized, normalised, blanked float32 images (n, C, H, W).

    `colour` is mean and standard deviation of pixels in 0 … 255, each (1, C, 1, 1). Resizing keeps
    fractions of grey levels, where PIL would round them.
    """
    if config.rotation and draws is not None:
        images = _rotate(images.float(), (2 * draws[:, ANGLE] - 1) * config.rotation)
    if config.resize:
        images = F.interpolate(
            images.float(), (config.resize, config.resize), mode="bilinear", antialias=True
        )
    images = _normalised(images, colour)
    if config.cutout and draws is not None:
        images = _cut_out(images, draws, config.cutout)
    if config.erasing and draws is not None:
        images = _erase(images, draws[:, ERASE], config.erasing)
    return images


def _normalised(images: Tensor, colour: tuple[Tensor, Tensor]) -> Tensor:
    """Less the mean, by the deviation, float32.

    On a CPU a few images at a time: what one operation leaves in the cache, the next finds there.
    """
    mean, std = (_along_rows(values, images) for values in colour)
    result = torch.empty_like(images, dtype=torch.float32)
    few = len(images) if images.is_cuda else max(1, IN_CACHE // images[0].numel())
    for part, place in zip(images.split(few), result.split(few), strict=True):
        place.copy_(part).sub_(mean).div_(std)
    return result


def _along_rows(values: Tensor, images: Tensor) -> Tensor:
    """(1, C, 1, 1) as it is, or repeated along a row for channels_last images.

    There a loop over three channels would be the innermost one: three times slower on a CPU.
    """
    last = torch.channels_last
    if images.is_contiguous() or not images.is_contiguous(memory_format=last):
        return values
    return values.expand(-1, -1, 1, images.shape[3]).contiguous(memory_format=last)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise about the centre, nearest pixel, zero outside."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # affine_grid's coordinates run from −1 to 1 along both sides: so the aspect enters
    matrix = torch.stack(
        [cos, -sin * (height / width), zero, sin * (width / height), cos, zero], 1
    ).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)


def _cut_out(images: Tensor, draws: Tensor, size: int) -> Tensor:
    """Zero a square of normalised pixels; it may cross the edge. arXiv:1708.04552."""
    height, width = images.shape[-2:]
    top, left = (
        (draws[:, column] * length).long() - size // 2
        for column, length in ((CUT_Y, height), (CUT_X, width))
    )
    sides = torch.full_like(top, size)
    return _blank(images, (top, sides), (left, sides))


def _erase(images: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Zero a rectangle of normalised pixels with that probability. arXiv:1708.04896.

    Area uniform in 0.02 … 0.33, aspect log-uniform in 0.3 … 3.3; the first of ten tries that is
    smaller than the image, else nothing: torchvision's RandomErasing.
    """
    height, width = images.shape[-2:]
    area = height * width * (ERASED[0] + uniform[:, 0:-3:2] * (ERASED[1] - ERASED[0]))
    low, high = (math.log(bound) for bound in ASPECT)
    aspect = torch.exp(low + uniform[:, 1:-3:2] * (high - low))
    tall, wide = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    erased = fits.any(1) & (uniform[:, -1] < probability)
    h, w = (torch.where(erased, side.gather(1, first)[:, 0], 0).long() for side in (tall, wide))
    top, left = (
        (uniform[:, column] * (length - side + 1)).long()
        for column, length, side in ((-3, height, h), (-2, width, w))
    )
    return _blank(images, (top, h), (left, w))


def _blank(images: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Zero a rectangle of each image in place; `rows`, `columns`: its first ones and its sides."""
    n, _, height, width = images.shape
    inside = []
    for (first, side), length in ((rows, height), (columns, width)):
        place = torch.arange(length, device=images.device)
        inside.append((place >= first[:, None]) & (place < (first + side)[:, None]))
    square = inside[0][:, :, None] & inside[1][:, None, :]
    # a product is several times faster on a CPU than filling through a mask
    return images.mul_((~square).float().view(n, 1, height, width))


def crop_box(
    height: int, width: int, uniform: list[float], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random-resized-crop; `uniform`: a row's draws in CROP.

    Area uniform in `scale`, aspect log-uniform in [3/4, 4/3], ten tries, then the largest centred
    crop of allowed aspect: torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv:1409.4842).
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for attempt in range(TRIES):
        area = height * width * (scale[0] + uniform[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + uniform[2 * attempt + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform[-2] * (height - h + 1)), int(uniform[-1] * (width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w
