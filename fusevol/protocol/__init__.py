"""How the processes talk: the control socket's messages and frames (agent → server), and JSON lines for the rest."""
