"""Processes to be killed: they start with what the jobs import, and without the threads of the tests' process."""

import multiprocessing

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["data_builders.annotate", "eval.judge.judge", "openai"])
