// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

// Command labkube carries the real parts of a Kubernetes control plane that the lab
// needs in one binary, so that they are linked once:
//
//	labkube etcd ETCD-FLAGS...                 the real etcd
//	labkube kube-apiserver APISERVER-FLAGS...  the real kube-apiserver
//	labkube controllers KUBECONFIG             the real token cleaner and node life-cycle loops
//	labkube execd ADDR CERT KEY CLIENT-CA      the kubelet's exec endpoint for a host without kubelet
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

const usage = "usage: labkube etcd|kube-apiserver|controllers|execd ..."

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	role, args := os.Args[1], os.Args[2:]
	var err error
	switch role {
	case "etcd":
		os.Args = append([]string{"etcd"}, args...)
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Args = append([]string{"kube-apiserver"}, args...)
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "controllers":
		err = runControllers(args)
	case "execd":
		err = runExecd(args)
	default:
		fmt.Fprintf(os.Stderr, "labkube: unknown role %q\n%s\n", role, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "labkube:", err)
		os.Exit(1)
	}
}
