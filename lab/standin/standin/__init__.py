# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for DSM: it keeps the vendor's documented promises on real Cassandra, etcd and kube-apiserver.

It is not DSM, holds no code of it and says ``stand-in`` in every banner and version.
"""
