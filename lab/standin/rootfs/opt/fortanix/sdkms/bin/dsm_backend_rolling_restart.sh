#!/bin/sh
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Restarts the backend of one member after the other, as the script of this name does.
export PYTHONPATH=/opt/standin PYTHONPYCACHEPREFIX=/var/cache/standin
exec /usr/bin/python3 -m standin.faults wrap dsm_backend_rolling_restart.sh /usr/bin/python3 -m standin.membership rolling-restart
