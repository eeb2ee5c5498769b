"""emptyDir: a volume whose content is a backing directory's.

descriptors.py   open descriptors, and a bounded number of those used last
files.py         open files and directories
node.py          what is done to an inode of the backing directory
volume.py        the backing directory itself, and which of its inodes the kernel knows
"""

from fusevol.server.emptydir.volume import EmptyDirVolume

__all__ = ["EmptyDirVolume"]
