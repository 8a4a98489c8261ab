# SPDX-License-Identifier: Apache-2.0
"""One room per command: `run` takes parsed flags and gives an exit code. parser.py has the flags.

Tables for people and progress go to stderr where stdout carries data. Thread safety: a process's main thread.
"""
