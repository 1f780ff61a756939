"""Programs that are sent to a host through ssh's standard input, and run there by the Python of the run.

Each is one file that needs the standard library only, and nothing of this project, so that it can tell what a host
lacks. It takes one JSON argument, and its last line on standard output is one JSON object.
"""
