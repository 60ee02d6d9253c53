# Three images: `cpu` is the whole of ucseg without torch and server, `export` makes model folders and engines, `triton`
# is NVIDIA's server with what the volume model needs. The file is linted, and the step of `cpu` is run in a clean
# environment, by tests/packaging. No image has been built yet, and `triton` has never run on a GPU.

FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/ucseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ucseg_runtime ucseg_runtime
COPY export export
COPY serving serving
COPY training training

FROM base AS cpu
RUN pip install --constraint constraints.txt '.[nifti,triton]' && ucseg doctor
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
RUN pip install --no-cache-dir --break-system-packages --constraint constraints.txt .
USER 10001:10001
# Restricted groups want a header whose value the deployment sets; the network keeps everybody but the proxy out.
ENTRYPOINT ["tritonserver", "--model-repository=/models", "--disable-auto-complete-config", "--exit-on-error=true", \
  "--strict-readiness=true", "--model-control-mode=none", "--allow-sagemaker=false", "--allow-vertex-ai=false"]
EXPOSE 8000 8001 8002
