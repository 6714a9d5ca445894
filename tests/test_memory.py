"""Freed memory goes back to the system."""

import platform
import subprocess
import sys

import pytest


FRAGMENTED = """
import psutil, torch
from oialr_peft.memory import release_memory

def held():
    return psutil.Process().memory_info().rss >> 20

torch.zeros(4_000_000)  # 16 MB: once that was freed, glibc serves smaller buffers from the heap
before = held()
parts = [torch.ones(100_000) for _ in range(1000)]
last = parts[-1]  # at the end of the heap, which can only shrink from there by itself
del parts
freed = held() - before
release_memory()
print(freed, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_what_lies_free_inside_the_heap_is_given_back():
    run = subprocess.run([sys.executable, "-c", FRAGMENTED], check=True, capture_output=True, text=True)
    freed, released = map(int, run.stdout.split())
    assert freed > 300
    assert released < 20
