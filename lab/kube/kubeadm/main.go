// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

// Command kubeadm is the real kubeadm, built from its own Go module; the lab uses
// its token, certs and kubeconfig phases.
package main

import (
	"k8s.io/kubernetes/cmd/kubeadm/app"
	kubeadmutil "k8s.io/kubernetes/cmd/kubeadm/app/util"
)

func main() { kubeadmutil.CheckErr(app.Run()) }
