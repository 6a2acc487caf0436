// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	rcproto "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	rc "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// hostExecutor runs "in the container" what is asked: in the lab the container is the host itself.
type hostExecutor struct{}

func (hostExecutor) ExecInContainer(ctx context.Context, _ string, _ types.UID, _ string, cmd []string,
	in io.Reader, out, errw io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	c.Stdin, c.Stdout, c.Stderr = in, out, errw
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

// runExecd serves /exec/NAMESPACE/POD/CONTAINER with the kubelet's own streaming library,
// for clients whose certificate the given CA signed (the apiserver's kubelet client).
func runExecd(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: labkube execd ADDR CERT KEY CLIENT-CA")
	}
	addr, cert, key, clientCA := args[0], args[1], args[2], args[3]
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in %s", clientCA)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		if len(part) != 4 || part[0] != "exec" {
			http.NotFound(w, r)
			return
		}
		options, err := rc.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		rc.ServeExec(w, r, hostExecutor{}, part[2], "", part[3], r.URL.Query()["command"], options,
			time.Hour, 30*time.Second, rcproto.SupportedStreamingProtocols)
	})
	server := &http.Server{
		Addr:      addr,
		Handler:   handler,
		TLSConfig: &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
	}
	return server.ListenAndServeTLS(cert, key)
}
