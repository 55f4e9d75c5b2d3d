"""What operators ask and do: inspect topics and groups, handle dead letters, check a server."""
