"""Small data sets in every layout, written for tests."""

import gzip
import io
import pickle
import struct
import tarfile

import torch
from PIL import Image

from prunezoo.schema.data import DataConfig
from prunezoo.training.data.data import open_data
from prunezoo.training.data.layouts import raw_files
from prunezoo.training.random import generator

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")


def pictures(count, side=12, stream="pictures"):
    source = generator(0, stream)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=source)


def encoded(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, kind, **options)
    return file.getvalue()


def png(image):
    return encoded(image, "PNG")


def jpeg(height, width, number):
    smooth = torch.rand(3, 4, 5, generator=generator(0, "jpeg", number))
    image = torch.nn.functional.interpolate(smooth[None], (height, width), mode="bilinear")[0]
    return encoded((image * 255).to(torch.uint8), "JPEG")


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def opened(folder, rank=0, world_size=1, **options):
    config = DataConfig(name=str(folder), **options)
    return open_data(config, seed=0, device=CPU, rank=rank, world_size=world_size)


def labelled(count):
    return [i % 3 for i in range(count)]


def write_folders(root, per_class=3, test="val"):
    images = {"train": pictures(3 * per_class), test: pictures(3, stream="test")}
    for split, stack in images.items():
        for i, image in enumerate(stack):
            write(root / split / CLASSES[i * 3 // len(stack)] / f"{i:03}.png", png(image))
    return images["train"], images[test]


def write_photographs(root, per_class=4):
    for split, count in (("train", per_class), ("val", 2)):
        for c, name in enumerate(CLASSES):
            for i in range(count):
                number = 100 * c + i
                data = jpeg(100 + 7 * i, 120 - 11 * c, number)
                write(root / split / name / f"{i}.JPEG", data)


def write_parquet(root, image="image", label="label"):
    import datasets

    features = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))}
    )
    stacks = []
    for split, count in (("train", 7), ("test", 4)):
        stack = pictures(count, stream=split)
        rows = {
            image: [{"bytes": png(x), "path": None} for x in stack],
            label: labelled(count),
        }
        (root / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
        stacks.append(stack)
    return stacks


def write_shards(root, side=12):
    root.mkdir(parents=True, exist_ok=True)
    stacks = []
    for split, count in (("train", 7), ("validation", 4)):
        stack = pictures(count, side, stream=split)
        for shard in range(2):
            with tarfile.open(root / f"set-{split}-{shard:04}.tar", "w") as tar:
                for i in range(shard, count, 2):
                    for kind, data in (("png", png(stack[i])), ("cls", str(i % 3).encode())):
                        member = tarfile.TarInfo(f"sample{i:05}.{kind}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        order = [*range(0, count, 2), *range(1, count, 2)]
        stacks.append((stack[order], torch.tensor(order) % 3))
    return stacks


def idx(*shape, kind=b"\0\0\x08"):
    """The header of an idx file: two zero bytes and the type, rank, big-endian sizes."""
    return kind + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def write_idx(root, compress=True, train=9, test=4):
    stacks = []
    for part, count in (("train", train), ("t10k", test)):
        images = pictures(count, 6, stream=part)[:, 0]
        files = {
            f"{part}-images-idx3-ubyte": idx(*images.shape) + images.numpy().tobytes(),
            f"{part}-labels-idx1-ubyte": idx(count) + bytes(labelled(count)),
        }
        for name, data in files.items():
            write(
                root / (f"{name}.gz" if compress else name),
                gzip.compress(data) if compress else data,
            )
        stacks.append(images[:, None])
    return stacks


def write_cifar(root, key=b"labels", names=raw_files.CIFAR10_NAMES):
    stacks = []
    for name in names:
        stack = pictures(4, 32, stream=name)
        content = {b"data": stack.view(4, -1).numpy(), key: labelled(4)}
        write(root / name, pickle.dumps(content, protocol=2))
        stacks.append(stack)
    return torch.cat(stacks[:-1]), stacks[-1]
