"""What travels between processes: messages (plain data), codec (frames), sockets (the only file importing zmq)."""
