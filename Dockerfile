# moec in a container. Images are built from a checkout; docs/ci.md says how, and what was run of this.
#   docker build -t moec .                    for the CPU
#   docker build -t moec:cuda --target cuda .  for a GPU; the driver is the host's
# The build argument PIP_EXTRA_INDEX_URL names an index with PyTorch's CPU wheels, which are far smaller.
ARG PYTHON=3.12

# with a C++ compiler, which stays here, the wheel has moec's own kernels for CPUs
FROM python:${PYTHON}-slim AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY moec moec
COPY passes passes
COPY backends backends
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# PyTorch's own wheels bring the CUDA libraries that ONNX Runtime asks for; Triton compiles its launcher with gcc
FROM python:${PYTHON}-slim AS cuda
ARG EXTRAS=attest,triton
ARG PIP_EXTRA_INDEX_URL=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
RUN python -m pip install --no-cache-dir -c /wheels/constraints.txt "$(echo /wheels/moec-*.whl)[${EXTRAS}]" \
    && useradd --create-home --uid 1000 moec
USER 1000
WORKDIR /work
ENTRYPOINT ["moec"]
CMD ["--help"]

FROM python:${PYTHON}-slim AS cpu
ARG EXTRAS=attest
ARG PIP_EXTRA_INDEX_URL=
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
RUN python -m pip install --no-cache-dir -c /wheels/constraints.txt "$(echo /wheels/moec-*.whl)[${EXTRAS}]" \
    && useradd --create-home --uid 1000 moec
USER 1000
WORKDIR /work
ENTRYPOINT ["moec"]
CMD ["--help"]
