"""Messages that nobody ought to send, to every port of every process of a pipeline that serves."""
