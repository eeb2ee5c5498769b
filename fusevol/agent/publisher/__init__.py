"""The agent's way to the server: the control socket for contents and trees, the mount for updates."""
