"""Operations counted as they run: by hand, by sizes, by torch's own counter where it is right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunezoo import models
from prunezoo.models.axes.find import axes
from prunezoo.models.count import count
from prunezoo.models.operations import Operations, alike, repeating, uncounted
from prunezoo.pruning.amount.latency import latency_table
from prunezoo.pruning.criteria import CRITERIA


def operations(run) -> int:
    counter = Operations()
    with counter.counted():
        run()
    return counter.flops


def torchs(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def digits_cnn() -> tuple[nn.Module, int, int]:
    """A network, its MACs for an image, and those of its first layer."""
    model = models.build("digits_cnn", num_classes=10, in_channels=1)
    layers = count(model, torch.zeros(1, 1, 8, 8)).layers.values()
    return model, sum(layer.macs for layer in layers), next(iter(layers)).macs


def images(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(number, 1, 8, 8), torch.arange(number) % 10)]


LAYERS = {
    "convolution": (nn.Conv2d(4, 8, 3, stride=2, padding=1), (4, 9, 9)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), (4, 8, 8)),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4), (4, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
    "linear": (nn.Linear(5, 7), (5,)),
    "linear, rows": (nn.Linear(5, 7), (3, 5)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_two_a_mac_in_each_of_three_passes(name, layout):
    layer, shape = LAYERS[name]
    if layout is torch.channels_last and len(shape) < 3:
        return
    macs = count(layer, torch.zeros(1, *shape)).macs
    x = torch.randn(6, *shape).contiguous(memory_format=layout)
    assert operations(lambda: layer(x)) == 6 * 2 * macs
    assert operations(lambda: layer(x).sum().backward()) == 6 * 4 * macs
    read = x.clone().requires_grad_()
    assert operations(lambda: layer(read).square().sum().backward()) == 6 * 6 * macs


def test_groups_are_what_torch_counts_wrong():
    """If this fails, torch's own counter has been mended."""
    layer, shape = LAYERS["depthwise"]
    x = torch.randn(1, *shape)
    assert torchs(lambda: layer(x).sum().backward()) > operations(lambda: layer(x).sum().backward())


def attention(kernel):
    query, key = torch.randn(2, 3, 6, 8, requires_grad=True), torch.randn(2, 3, 5, 8)

    def run():
        with sdpa_kernel(kernel):
            value = key.clone().requires_grad_()
            F.scaled_dot_product_attention(query, value, value).sum().backward()

    return run


def twice():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    weights = list(net.parameters())
    x = torch.randn(3, 1, 8, 8)

    def run():
        slopes = torch.autograd.grad(net(x).square().sum(), weights, create_graph=True)
        torch.stack([slope.square().sum() for slope in slopes]).sum().backward()

    return run


def image_by_image():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, w, (x[None],)).square().sum()

    return lambda: vmap(grad(loss), (None, 0))(weights, torch.randn(3, 1, 8, 8))


def without_autograd():
    layer, x = nn.Linear(4, 3), torch.randn(2, 5, 4)

    def run():
        with torch.inference_mode():
            torch.einsum("abc,abd->acd", layer(x), x @ x.mT)

    return run


PROGRAMS = {
    "attention": attention(SDPBackend.FLASH_ATTENTION),
    "attention, by products": attention(SDPBackend.MATH),
    "double backward": twice(),
    "no autograd": without_autograd(),
    "half precision": lambda: twice_in_half(),
}


def twice_in_half():
    with torch.autocast("cpu", torch.bfloat16):
        twice()()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_take_what_torch_counts(name):
    run = PROGRAMS[name]
    assert operations(run) == torchs(run) > 0


ATTENTIVE = {
    "attention": nn.MultiheadAttention(8, 2, batch_first=True),
    "encoder": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("name", ATTENTIVE)
def test_evaluation_without_gradients_takes_what_training_takes(name):
    """PyTorch has one kernel for such a layer there, whose parts nobody sees."""
    layer, x = ATTENTIVE[name], torch.randn(3, 5, 8)
    words = (x,) if name == "encoder" else (x, x, x)
    products = 4 * 8 * 8 + 2 * 5 * 8 + (name == "encoder") * 2 * 8 * 16  # of each of 15 words

    def evaluate():
        with torch.no_grad():
            layer.eval()(*words)

    assert operations(evaluate) == operations(lambda: layer.train()(*words)) == 2 * 15 * products
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_image_by_image_take_what_they_take_together():
    """vmap makes groups of the images, which torch's own counter takes to be more work."""
    first, second = 2 * 9 * 4 * 36, 2 * 144 * 2  # of an image in a pass
    assert operations(image_by_image()) == 3 * (2 * first + 3 * second)


def test_products_with_vectors():
    matrix, vector = torch.randn(3, 5), torch.randn(5)
    assert operations(lambda: matrix @ vector) == 2 * 15
    assert operations(lambda: vector @ vector) == 2 * 5
    assert operations(lambda: torch.addmv(torch.zeros(3), matrix, vector)) == 2 * 15
    assert operations(lambda: torch.addbmm(torch.zeros(3, 3), matrix[None], matrix.mT[None])) == 90


def test_snip_takes_three_passes_without_the_images_gradient():
    model, macs, first = digits_cnn()
    taken = operations(lambda: CRITERIA["snip"](model, images(16)))
    assert taken == 16 * (6 * macs - 2 * first)


def test_grasp_takes_a_double_backward_pass_more():
    """A gradient; a gradient again, and its derivative: of each layer's two backward products by
    both of their factors, and the layer's own two again. Of the first layer there is but the
    weight's product, which torch differentiates by the image too.
    """
    model, macs, first = digits_cnn()
    gradient = 6 * macs - 2 * first
    derivative = 12 * (macs - first) + 6 * first
    taken = operations(lambda: CRITERIA["grasp"](model, images(16)))
    assert taken == 16 * (2 * gradient + derivative)


NONE = ("magnitude", "random", "lamp", "group_norm", "fpgm")


@pytest.mark.parametrize("name", CRITERIA)
def test_counting_changes_no_score(name):
    model, batches = digits_cnn()[0], images(4)
    plain = CRITERIA[name](model, batches)
    counter = Operations()
    with counter.counted():
        watched = CRITERIA[name](model, batches)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    if name in NONE:
        assert counter.flops == 0


def test_looking_at_a_networks_structure_and_timing_it_take_nothing():
    model, image = digits_cnn()[0], torch.randn(1, 1, 8, 8)

    def look():
        axes(model, image)
        count(model, image)
        latency_table(model, image, batch_size=1, points=1, seconds=1e-6)
        count(model.to("meta"), image.to("meta"))
        model(image.to("meta"))

    assert operations(look) == 0


def test_what_is_left_out_is_left_out_and_what_follows_counts():
    matrix = torch.ones(2, 2)

    def some():
        with uncounted(), uncounted():
            matrix.mm(matrix)
        matrix.mm(matrix)

    assert operations(some) == 16
    some()  # where nothing counts, nothing happens


def test_batches_of_the_same_shapes_count_as_the_first_of_them():
    sizes, seen = (3, 2, 3, 3, 2), []

    def run():
        for (x,) in alike([(torch.ones(n, 4),) for n in sizes]):
            seen.append(Operations.current is not None)
            x.mm(x.mT)

    every = sum(2 * n * n * 4 for n in sizes)
    assert operations(run) == every
    assert seen == [True, True, False, False, False]


def test_of_an_optimisers_evaluations_the_first_alone_is_watched():
    matrix, seen = torch.ones(2, 2), []

    def evaluate():
        seen.append(Operations.current is not None)
        return matrix.mm(matrix)

    def run():
        with repeating(evaluate) as evaluated:
            for _ in range(4):
                evaluated()
            matrix.mm(matrix)  # the optimiser's own, which is not counted

    assert operations(run) == 4 * 16
    assert seen == [True, False, False, False]
    run()
    assert seen[4:] == [False] * 4
    assert operations(lambda: [run(), matrix.mm(matrix)]) == 5 * 16


def test_an_evaluation_that_fails_leaves_nothing_behind():
    def fail():
        raise ZeroDivisionError

    counter, matrix = Operations(), torch.ones(2, 2)
    with (
        pytest.raises(ZeroDivisionError),
        counter.counted(),
        repeating(fail) as evaluated,
    ):
        evaluated()
    assert Operations.current is None
    matrix.mm(matrix)
    assert counter.flops == 0


def test_a_loop_that_is_left_or_fails_leaves_nothing_behind():
    matrix, counter = torch.ones(2, 2), Operations()
    kept = alike([matrix] * 3)

    def fail():
        for number, _ in enumerate(kept):
            matrix.mm(matrix)
            assert 1 / (1 - number)

    with pytest.raises(ZeroDivisionError), counter.counted():
        fail()
    assert Operations.current is None
    kept.close()
    assert Operations.current is None
    matrix.mm(matrix)
    assert counter.flops == 32
    with counter.counted():
        for number, _ in enumerate(alike([matrix] * 3)):
            matrix.mm(matrix)
            if number == 1:
                break
        matrix.mm(matrix)
    assert counter.flops == 32 + 48
