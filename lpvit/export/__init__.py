"""ONNX and OpenVINO files, int8 included."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
