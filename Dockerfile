# syntax=docker/dockerfile:1
# docker build -t prunezoo .
# docker run --gpus all -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" prunezoo --recipe recipes/quickstart.yaml
# A GPU is used if there is one; nothing is fetched at run time. Any user id works: only /app/runs and /tmp are written.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home prunezoo

WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache

# requirements first: code changes do not fetch packages again
COPY requirements.txt .
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --requirement requirements.txt

COPY . .
RUN mkdir -p data runs && chmod 1777 runs

USER 10001
VOLUME ["/app/data", "/app/runs"]
ENTRYPOINT ["accelerate", "launch", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1", "--num_processes", "1", "train.py"]
CMD ["--recipe", "recipes/quickstart.yaml"]
