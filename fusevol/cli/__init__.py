"""The command line: one small module per command. It parses and prints; what it asks for is done by others.

`fusevol mount` becomes the keeper (exec); the other commands ask a running instance through its sockets. Imports that
take long stand in the functions that need them: `fusevol status` must answer at once.
"""
