"""The optimal assignment against scipy's."""
import json
import subprocess
import time

import numpy
import pytest
from scipy.optimize import linear_sum_assignment

from program import BUILD


def assignments(tmp_path, matrices):
    """Of every matrix the least and the greatest."""
    file = tmp_path / "matrices.f64"
    file.write_bytes(numpy.ascontiguousarray(matrices, dtype=numpy.float64).tobytes())
    done = subprocess.run([BUILD / "tests/assignment_probe", file, str(matrices.shape[1])], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return list(zip(lines[::2], lines[1::2]))


@pytest.mark.parametrize("n, count", [(3, 40), (17, 40), (100, 10), (301, 2)])
def test_random_costs_give_the_permutation_of_scipy(tmp_path, n, count):
    matrices = numpy.random.default_rng(n).standard_normal((count, n, n))
    for matrix, (least, greatest) in zip(matrices, assignments(tmp_path, matrices)):
        assert least == linear_sum_assignment(matrix)[1].tolist()
        assert greatest == linear_sum_assignment(matrix, maximize=True)[1].tolist()


def test_ties_and_structured_costs_give_the_value_of_scipy(tmp_path):
    random = numpy.random.default_rng(5)
    matrices = numpy.stack([random.integers(0, 4, (60, 60)), numpy.outer(numpy.arange(60), numpy.arange(60)), numpy.ones((60, 60))])
    for matrix, found in zip(matrices, assignments(tmp_path, matrices)):
        for columns, maximize in zip(found, (False, True)):
            assert sorted(columns) == list(range(60))
            rows, best = linear_sum_assignment(matrix, maximize=maximize)
            assert matrix[range(60), columns].sum() == pytest.approx(matrix[rows, best].sum(), abs=1e-9)


def test_an_expert_of_768_neurons_takes_less_than_a_second(tmp_path):
    matrix = numpy.random.default_rng(7).standard_normal((1, 768, 768))
    start = time.process_time()
    begun = time.perf_counter()
    [(least, greatest)] = assignments(tmp_path, matrix)
    assert time.perf_counter() - begun < 4 and time.process_time() >= start  # two assignments, on a machine that is shared
    assert greatest == linear_sum_assignment(matrix[0], maximize=True)[1].tolist()
