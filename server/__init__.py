"""The process: settings, composition, HTTP, the socket endpoint, the workers and the command line."""
