"""What the agent tells of itself: logs, status, Events."""
