// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/controller/bootstrap"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
)

// runControllers runs the two kube-controller-manager loops the lab needs: the token
// cleaner (deletes expired bootstrap tokens) and the node life cycle (Ready turns
// Unknown when a node's lease is no longer renewed, after 40 s as in kubelet's defaults).
func runControllers(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: labkube controllers KUBECONFIG")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx := genericapiserver.SetupSignalContext()
	factory := informers.NewSharedInformerFactory(client, 0)
	cleaner, err := bootstrap.NewTokenCleaner(client, factory.Core().V1().Secrets(), bootstrap.DefaultTokenCleanerOptions())
	if err != nil {
		return err
	}
	lifecycle, err := nodelifecycle.NewNodeLifecycleController(ctx, factory.Coordination().V1().Leases(),
		factory.Core().V1().Pods(), factory.Core().V1().Nodes(), factory.Apps().V1().DaemonSets(), client,
		5*time.Second, 60*time.Second, 40*time.Second, 0.1, 0.01, 50, 0.55)
	if err != nil {
		return err
	}
	go cleaner.Run(ctx)
	go lifecycle.Run(ctx)
	factory.Start(ctx.Done())
	fmt.Fprintln(os.Stderr, "labkube: controllers running")
	<-ctx.Done()
	return nil
}
