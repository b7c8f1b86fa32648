"""Values that fuzz_recipes.py puts in place of others."""

from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


MODELS = _words("""
digits_cnn resnet56 vgg_11 mobilenet_v1 small_conv alexnet resnet50 timm/resnet18 mnist_cnn
timm/convnext_atto timm/efficientnet_b0 timm/vit_tiny_patch16_224 resnet18_cifar bep_vgg16
""")
OPTIONS = _words("width depth layers init drop_rate num_classes pretrained name")

AMOUNTS = _words("sparsity channels nodes params macs activation_bytes latency compression_ratio")
NUMBERS = [0, -1, 1, 2, 7, 0.5, -0.5, 1.5, 1e308, -1e308, 1e-320, -0.0, 10**18, -(10**18), 10**30]
GOOD_DURATIONS = _words("5ep 0it 1it 50% 10% 2ep 1ep 25% 100% 100it")
DURATIONS = _words("""
5ep 0ep 0it 1it 50% 0.0001ep 100% -1ep 1.5it 150% -5% 99.99999% 1000000% 999999999999it 1e5it ٣ep
""")
DURATIONS += ["5 ep", "9" * 400 + "ep"]
WORDS = _words("""
nan inf 1e999 none off ~ ½ 👾 .. . ~root /etc/passwd ../../etc/passwd /nope <script> ${HOME} $(id)
%s%n [x] [/bold] 0x10 1_000 12:30:45 2020-01-01 sgd timm/ name timm/lamb timm/nope timm/../x
synthetic digits classifier stem all
""")
WORDS += ["", "a\nb", "\x07", "x" * 5000]
PARTS: list[Any] = [None, True, False, [], {}, [1], {"a": 1}, [[[]]], {1: 2}, {"": ""}, ["a", "b"]]
PARTS += [[0.1, 1], [2, -3], {"name": None}, {"name": ["a"]}, {"name": {"name": "x"}}]
NASTY: list[Any] = [*NUMBERS, *DURATIONS, *WORDS, *PARTS, {"name": "sgd", "lr": "x"}]

TEXT = list("\t\n :{}[]&*!|>'\"%@`-,#?\\é0\u2028\ufeff\0\x85\u200f")
TEXT += ["<<: *a\n", "- ", "&a ", "*a", "--- \n", "%YAML 9.9\n", "!!python/name:os.system ", "  "]
TEXT += ["[" * 500, "? "]
SETTINGS = _words("""
{p} {p}==x {p}.=1 .{p}=1 {p}..x=1 ={p} {p}.x.y.z=1 {p}=| {p}=@ {p}={{a:1 extends=
extends=/etc/passwd extends=. extends=../../nope.yaml
""")
SETTINGS += ["{p}=&a [*a]", "{p}=!!python/object/apply:os.system ['id']", "{p}={{<<: {{a: 1}}}}"]
SETTINGS += ["{p}=<<: 1", "{p}=\t1", "{p}=: :", "{p}=---\n...\n---", "{p}=\0", "{p}=? a", " {p}=1"]
PROCESSES = _words("1 1 1 1 1 1 1 1 1 1 1 1 2 4 0 x 999999")
SHOW = _words("--csv --json --markdown --all --output=/proc/x --output=/etc/passwd --nope")
PLAN = _words("""
--seeds=3 --seeds=1, --seeds=0 --seeds=x --seeds=999999999 --only=* --only=[ --only= --processes=0
--processes=2 --images-per-second=nan --images-per-second=5 --watts=1 --watts=-1 --price=2 --set=x
--set== --set=training.duration=1ep --set=training.duration=x --local=seed=1 --device=x --nope
""")
RATES = _words("--images-per-second=100 --watts=10 --kg-per-kwh=0.4")
