"""One owner's part of a program's run, in a process of its own: `part` is that process, `process` looks after it.

A program is any Python code. In a process of its own it can be ended whenever it does not end by itself, and what it
changes in the process (torch's defaults, loaded modules, the working folder) changes no other session.
"""
