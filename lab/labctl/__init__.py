# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal site on one machine: builds it, starts it, breaks it on demand and takes it down without a trace."""
