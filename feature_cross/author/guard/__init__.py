# SPDX-License-Identifier: Apache-2.0
"""What keeps the ids of a trained model from changing unseen: diffs, golden files and locks."""
