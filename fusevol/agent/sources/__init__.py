"""Where Pods and the objects they project come from. `source.py` is what a source is; each other module is one."""
