// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

// Package cri is our own stand-in for k8s.io/cri-client/pkg: there is no container
// runtime in the lab, so every connection is refused.
package cri

import (
	"errors"
	"time"

	criapi "k8s.io/cri-api/pkg/apis"
)

var errNoRuntime = errors.New("no container runtime in this build")

func NewRemoteRuntimeService(string, time.Duration, any, any) (criapi.RuntimeService, error) {
	return nil, errNoRuntime
}

func NewRemoteImageService(string, time.Duration, any, any) (criapi.ImageManagerService, error) {
	return nil, errNoRuntime
}
