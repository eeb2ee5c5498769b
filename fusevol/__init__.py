"""fusevol: one FUSE mount that serves the volumes of every Pod of a Kubernetes node."""

__version__ = "0.1.0"
