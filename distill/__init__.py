"""Recipes that make a student: teacher -> student -> saved checkpoint with calibrated ranges.

Imports point one way. From the lowest to the highest:

1. recipe: the options of a training, as data.
2. training: the loop, and what every recipe needs around it.
3. start: the weights from which a student's training starts.
4. objectives: the stages of a distillation and their losses.
5. model_card, ready: what a saved model says about itself.
6. teacher, general, student: one file for each kind of model that can be made. grid: several teachers, the best kept.
7. commands: the command line.
"""
