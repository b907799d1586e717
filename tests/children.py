"""Processes to be killed: forked with what the jobs and the fake endpoint import, without the threads of the tests."""

import multiprocessing

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(
    ["data_builders.annotate", "eval.judge.judge", "openai", "aiohttp.web", "bandit.core.manager"]
)
