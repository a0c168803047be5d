"""Replayable experiments on top of the library, the recipes and the parties.

The folders import each other in one direction. `spec` (what an experiment asks for) imports none of the others.
`measuring` (what is measured, and how), `records` (recorded results) and `render` (tables, figures and the report)
import only `spec`. `kinds` (the work of each kind of experiment) imports `spec`, `measuring` and `records`. The
modules beside this file are the commands; they may import all folders, and no folder imports them.
"""
