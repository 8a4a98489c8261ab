# SPDX-License-Identifier: Apache-2.0
"""How many rows a config's features will have, and what they cost, before anything is trained.

docs/estimate.md states the methods, their sources and their errors as tested.
"""
