# Three images: `cpu` is the whole of ucseg without torch and server, `export` makes model folders and engines, `triton`
# is NVIDIA's server with what the volume model and health checks need. The file is linted, and every RUN step is executed
# in a clean environment, by tests/packaging. No image has been built yet, and `triton` has never run on a GPU.

FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/ucseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ucseg_runtime ucseg_runtime
COPY export export
COPY serving serving
COPY training training

FROM base AS cpu
RUN pip install --constraint constraints.txt '.[nifti,triton,pacs]' && ucseg doctor
USER 10001:10001
ENTRYPOINT ["ucseg"]

FROM base AS export
RUN pip install --constraint constraints.txt '.[nifti,export,int8]' && ucseg-export --help
USER 10001:10001
ENTRYPOINT ["ucseg-export"]

FROM nvcr.io/nvidia/tritonserver:26.04-py3 AS triton
WORKDIR /opt/ucseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ucseg_runtime ucseg_runtime
COPY export export
COPY serving serving
COPY training training
RUN pip install --no-cache-dir --break-system-packages --constraint constraints.txt '.[serving]' && ucseg-serve --help
# The root is read-only, and nobody has the home of uid 10001: what is written goes to /tmp.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["/bin/sh", "/opt/ucseg/serving/deploy/start-triton.sh"]
EXPOSE 8000 8001 8002
