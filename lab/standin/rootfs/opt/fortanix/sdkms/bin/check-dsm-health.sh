#!/bin/sh
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Looks at the nodes, the pods and the three health answers of this member (stand-in for DSM).
export PYTHONPATH=/opt/standin PYTHONPYCACHEPREFIX=/var/cache/standin
exec /usr/bin/python3 -m standin.faults wrap check-dsm-health.sh /usr/bin/python3 -m standin.membership check-health
