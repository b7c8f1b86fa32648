# syntax=docker/dockerfile:1
# docker build -t prunezoo .
# mkdir -p runs && docker run --gpus all --shm-size 8g --user "$(id -u)" -v "$PWD/data:/app/data:ro" -v "$PWD/runs:/app/runs" prunezoo --recipe recipes/quickstart.yaml
# One GPU is used, else the CPU (README has the command for eight); nothing is fetched at run time. Only /app/runs and /tmp are written, so --read-only
# (with --tmpfs /tmp:exec) and any --user work. PyTorch's wheels bring CUDA's libraries: the smallest runtime image is enough.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# a compiler and Python's headers are what torch.compile needs; the base image's tag pins the archive's release
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home prunezoo

# requirements first: code changes do not fetch packages again; what only tests and linters need is left out
WORKDIR /app
COPY requirements.txt deploy/docker/constraints.txt /tmp/
RUN python3 -m venv /opt/venv \
    && grep -vE '^(pytest|hypothesis|jsonschema|ruff|pyright|pandas-stubs|pre-commit|mkdocs)' /tmp/requirements.txt > /tmp/needed.txt \
    && /opt/venv/bin/pip install --no-cache-dir --requirement /tmp/needed.txt --constraint /tmp/constraints.txt \
    && rm /tmp/*.txt

# a user id without a name and a home: what asks for either finds these
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    USER=prunezoo \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache

# compiled here, as nothing is written at run time: else each start compiles 200 files
COPY . .
RUN mkdir -p data runs && chmod 1777 runs \
    && python -m compileall -q . \
    && python train.py --recipe recipes/quickstart.yaml --dry-run \
    && rm -rf /tmp/*

USER 10001
VOLUME ["/app/data", "/app/runs"]
# python is the container's first process: docker stop reaches the training, and its exit status comes back; with several
# GPUs: --entrypoint python, and after the image -m prunezoo.training.ranks.torchrun --standalone --nproc_per_node 8 train.py
ENTRYPOINT ["python", "train.py"]
CMD ["--recipe", "recipes/quickstart.yaml"]
