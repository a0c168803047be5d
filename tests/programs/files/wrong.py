"""Programs that do what a program may not."""

import random
import time

import crypten
import numpy as np
import torch

import mpcformer
from mpcformer import owner

INPUTS = {"x": owner("data", (3,))}


def declare(function):
    return mpcformer.program(inputs=INPUTS, reveal={"y": "data"})(function)


@declare
def opens(x):
    total = x.sum().get_plain_text()
    return {"y": x * total}


@declare
def reveals(x):
    return {"y": x * x.reveal()}


@declare
def decrypts(x):
    layer = crypten.nn.module.Parameter(x)
    layer.encrypt(mode=False)
    return {"y": x}


@declare
def sends(x):
    crypten.communicator.get().broadcast(x.share, 0)
    return {"y": x}


@declare
def branches(x):
    return {"y": x if x.sum() > 0 else -x}


@declare
def draws(x):
    return {"y": x + torch.rand(3)}


@declare
def draws_by_numpy(x):
    return {"y": x + float(np.random.random())}


@declare
def draws_by_python(x):
    return {"y": x + random.random()}


@declare
def returns_plaintext(x):
    return {"y": torch.zeros(3)}


@declare
def returns_another(x):
    return {"z": x}


@declare
def fails(x):
    return {"y": x.view(2, 2)}


@declare
def waits(x):
    while True:
        time.sleep(0.01)


@declare
def differs(x):
    return {"y": x.square() if crypten.communicator.get().get_rank() else x}


@declare
def private_draws(x):
    return {"y": x + crypten.rand(3)}
