"""The data plane: answers the kernel from what was published last, and waits for nobody."""
