"""Reused memory: what was handed out is never touched while anything holds it (expected: torch's own new tensors)."""

import copy
import gc
import pickle
import threading

import numpy as np
import pytest
import torch

from bevstack.buffers import ReusedBuffers

SHAPE = (3, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_a_tensor_like_any_other(dtype):
    tensor = ReusedBuffers().empty(SHAPE, dtype)
    assert tensor.shape == SHAPE and tensor.dtype == dtype and tensor.is_contiguous()
    assert tensor.data_ptr() % 64 == 0
    tensor.fill_(3)
    assert torch.equal(tensor, torch.full(SHAPE, 3, dtype=dtype))


def test_nothing_is_a_shape_too():
    assert ReusedBuffers().empty((0, 4)).shape == (0, 4)


def test_memory_comes_back_when_nothing_holds_it():
    buffers = ReusedBuffers()
    tensor = buffers.empty(SHAPE)
    place = tensor.data_ptr()
    del tensor
    assert buffers.empty(SHAPE).data_ptr() == place
    # Asked for in a row and let go at once, as a loop does, one buffer serves all.
    assert len({buffers.empty(SHAPE).data_ptr() for _ in range(5)}) == 1


HOLDERS = {
    "the tensor": lambda tensor: tensor,
    "a view": lambda tensor: tensor[1:].permute(2, 0, 1)[:1],
    "a detached view": lambda tensor: tensor.detach()[0],
    "its storage": lambda tensor: tensor.untyped_storage(),
    "an array": lambda tensor: tensor.numpy()[:, 1],
    "other numbers": lambda tensor: tensor.view(torch.int32),
    "a list in a dict": lambda tensor: {"frames": [tensor]},
    "a graph": lambda tensor: tensor * torch.ones(SHAPE, requires_grad=True),  # keeps the tensor for its backward pass
}


@pytest.mark.parametrize("name", HOLDERS)
def test_whatever_holds_it_keeps_it(name):
    buffers = ReusedBuffers()
    tensor = buffers.empty(SHAPE).fill_(1)
    place, held = tensor.data_ptr(), HOLDERS[name](tensor)
    del tensor
    gc.collect()
    others = [buffers.empty(SHAPE).fill_(2) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    del held
    gc.collect()
    assert buffers.empty(SHAPE).data_ptr() == place


def test_a_gradient_is_that_of_what_was_handed_out():
    # d/dw of sum(w x) is x: it would be another number, had the memory been written to again.
    buffers, weight = ReusedBuffers(), torch.ones(SHAPE, requires_grad=True)
    loss = (weight * buffers.empty(SHAPE).fill_(4)).sum()
    buffers.empty(SHAPE).fill_(9)
    loss.backward()
    assert torch.equal(weight.grad, torch.full(SHAPE, 4.0))


def test_sizes_that_nobody_wants_any_more_are_let_go():
    buffers = ReusedBuffers()
    buffers.empty((100,))
    for _ in range(70):
        buffers.empty((200,))
    assert [len(entry[1]) for entry in buffers._free] == [864]  # 200 floats and what aligns them


def test_copies_begin_empty():
    buffers = ReusedBuffers()
    place = buffers.empty(SHAPE).data_ptr()
    for other in (copy.deepcopy(buffers), pickle.loads(pickle.dumps(buffers))):
        held = other.empty(SHAPE)
        assert held.data_ptr() != place and buffers._free


def test_threads_do_not_share():
    # Eight threads write their number and look whether it stands; two with one buffer would see each other's.
    buffers, wrong = ReusedBuffers(), []

    def work(number):
        for _ in range(300):
            tensor = buffers.empty((64,)).fill_(number)
            if not np.all(tensor.numpy() == number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
