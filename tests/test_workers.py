import threading

import pytest
import torch

from lossland.workers import in_threads


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_torchs(threads):
    meeting = threading.Barrier(threads)

    def look(item: int) -> tuple[int, int, bool]:
        meeting.wait(10)  # as many at a time as torch may use
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert list(in_threads(look, range(6))) == [(item, 1, False) for item in range(6)]
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [threads]  # threads to come are as they were


def test_what_goes_wrong_in_a_thread_is_raised_and_the_number_of_threads_is_kept(threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [1, 0, 2]))
    assert torch.get_num_threads() == threads


def test_nothing_to_do_is_done(threads):
    assert list(in_threads(len, [])) == []
