// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
// SPDX-License-Identifier: GPL-3.0-or-later
//
// A long-distance link below TCP, for kernels without `tc netem`: two TUN devices in two network namespaces, and one
// thread for each direction between them. Each direction is a serialiser of RATE bit/s behind a drop-tail queue that
// holds QUEUE of waiting time, then a fixed one-way delay; each segment is lost with probability LOSS, independently.
//
// A packet that the kernel hands over unsegmented (TSO) is charged, queued and lost segment by segment: it is cut
// around what was lost. It is delivered in one piece when its last segment would have arrived, as a card with receive
// offload does. Charged are 38 bytes a segment for Ethernet (preamble, header, checksum, gap) beside IP.
//
// usage: wan NETNS_A NETNS_B DEVICE RATE_BIT_S DELAY_US LOSS_PPM QUEUE_US SEED
// Every line on standard input is answered by one line of JSON with the counters; end of input ends the link.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 17, LARGEST = 70000, BATCH = 32, ETHERNET = 38, COUNTED = 14 };
static const int VNET = sizeof(struct virtio_net_hdr);

struct packet {
    int64_t due;
    int length, segments;
    uint8_t *bytes;
};

struct direction {
    const char *name;
    int in, out;
    uint64_t random;
    _Atomic uint64_t offered_bytes, offered_segments, lost, overflowed, delivered_bytes, delivered_segments, blocked,
        late_1ms, late_5ms, worst_late_us;
};

static int64_t rate, delay, queue;
static uint64_t loss_below;

static void fail(const char *what) {
    fprintf(stderr, "wan: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// xorshift64*: each direction has its own state, so that a seed means the same losses whatever the threads do.
static uint64_t draw(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717ULL;
}

static int tun(const char *namespace, const char *name) {
    int handle = open(namespace, O_RDONLY | O_CLOEXEC);
    if (handle < 0 || setns(handle, CLONE_NEWNET)) fail(namespace);
    close(handle);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (device < 0 || ioctl(device, TUNSETIFF, &request)) fail("/dev/net/tun");
    if (ioctl(device, TUNSETVNETHDRSZ, &VNET)) fail("TUNSETVNETHDRSZ");
    if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) fail("TUNSETOFFLOAD");
    return device;
}

static uint16_t sum16(const uint8_t *bytes, int length) {
    uint32_t sum = 0;
    for (int i = 0; i + 1 < length; i += 2) sum += bytes[i] << 8 | bytes[i + 1];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static void put16(uint8_t *at, uint16_t value) {
    at[0] = value >> 8;
    at[1] = value;
}

// The TCP payload [offset, offset + length) of a packet that had TSO, as a packet of its own.
static uint8_t *cut(const uint8_t *from, int headers, int offset, int length, int mss, int last) {
    uint8_t *made = malloc(VNET + headers + length);
    if (!made) fail("malloc");
    memcpy(made, from, VNET + headers);
    memcpy(made + VNET + headers, from + VNET + headers + offset, length);
    struct virtio_net_hdr *vnet = (void *)made;
    uint8_t *ip = made + VNET;
    int ip_header = (ip[0] & 15) * 4;
    uint8_t *tcp = ip + ip_header;
    put16(ip + 2, headers + length);
    put16(ip + 4, (ip[4] << 8 | ip[5]) + offset / mss);
    put16(ip + 10, 0);
    put16(ip + 10, ~sum16(ip, ip_header));
    uint32_t sequence;
    memcpy(&sequence, tcp + 4, 4);
    sequence = htonl(ntohl(sequence) + offset);
    memcpy(tcp + 4, &sequence, 4);
    if (!last) tcp[13] &= ~(1 | 8);    // FIN and PSH belong to the last segment,
    if (offset) tcp[13] &= ~0x80;      // CWR to the first.
    uint8_t pseudo[12] = {[9] = 6};
    memcpy(pseudo, ip + 12, 8);
    put16(pseudo + 10, headers + length - ip_header);
    put16(tcp + 16, sum16(pseudo, 12));
    vnet->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet->csum_start = ip_header;
    vnet->csum_offset = 16;
    if (length > mss) {
        vnet->gso_size = mss;
        vnet->hdr_len = headers;
    } else {
        vnet->gso_type = VIRTIO_NET_HDR_GSO_NONE;
        vnet->gso_size = vnet->hdr_len = 0;
    }
    return made;
}

static void deliver(struct direction *self, struct packet *packet) {
    int64_t late = (now() - packet->due) / 1000;
    if (late > 1000) self->late_1ms += packet->segments;
    if (late > 5000) self->late_5ms += packet->segments;
    if (late > 0 && (uint64_t)late > self->worst_late_us) self->worst_late_us = late;
    self->delivered_segments += packet->segments;
    self->delivered_bytes += packet->length - VNET + COUNTED * packet->segments;
    free(packet->bytes);
}

static void *carry(void *argument) {
    struct direction *self = argument;
    struct packet *ring = calloc(RING, sizeof *ring);
    uint8_t *bytes = malloc(LARGEST);
    unsigned head = 0, tail = 0;
    int64_t wire_free = 0;
    if (!ring || !bytes) fail("malloc");
    prctl(PR_SET_TIMERSLACK, 1000UL);
    for (;;) {
        int64_t time = now();
        int full = 0;
        while (head != tail && ring[head % RING].due <= time) {
            struct packet *packet = &ring[head % RING];
            if (write(self->out, packet->bytes, packet->length) < 0 && errno == EAGAIN) {
                self->blocked++;
                full = 1;
                break;
            }
            deliver(self, packet);
            head++;
        }
        int taken = 0;
        for (; taken < BATCH && tail - head < RING - 64; taken++) {
            ssize_t size = read(self->in, bytes, LARGEST);
            if (size <= 0) break;
            const uint8_t *ip = bytes + VNET;
            if (ip[0] >> 4 != 4) continue;
            const struct virtio_net_hdr *vnet = (void *)bytes;
            int ip_header = (ip[0] & 15) * 4, headers = ip_header;
            if (ip[9] == 6) headers += (ip[ip_header + 12] >> 4) * 4;
            int payload = size - VNET - headers;
            int mss = vnet->gso_type != VIRTIO_NET_HDR_GSO_NONE && ip[9] == 6 ? vnet->gso_size : payload;
            int segments = mss > 0 ? (payload + mss - 1) / mss : 1;
            time = now();
            if (wire_free < time) wire_free = time;
            // Runs of segments that survive become packets; what was lost or found the queue full separates them.
            for (int first = 0, i = 0; i <= segments; i++) {
                int kept = 0;
                if (i < segments) {
                    int length = i + 1 < segments ? mss : payload - i * mss;
                    self->offered_segments++;
                    self->offered_bytes += length + headers + COUNTED;
                    if (queue && wire_free - time > queue) {
                        self->overflowed++;
                    } else {
                        if (rate) wire_free += (length + headers + ETHERNET) * 8000000000LL / rate;
                        kept = !loss_below || draw(&self->random) >= loss_below;
                        self->lost += !kept;
                    }
                }
                if (kept) continue;
                if (i > first) {
                    int whole = first == 0 && i == segments;
                    int offset = first * mss, length = (i < segments ? i * mss : payload) - offset;
                    struct packet *packet = &ring[tail % RING];
                    packet->length = whole ? size : VNET + headers + length;
                    packet->segments = i - first;
                    packet->due = wire_free + delay;
                    if (whole) {
                        if (!(packet->bytes = malloc(size))) fail("malloc");
                        memcpy(packet->bytes, bytes, size);
                    } else {
                        packet->bytes = cut(bytes, headers, offset, length, mss, i == segments);
                    }
                    tail++;
                }
                first = i + 1;
            }
        }
        if (taken == BATCH) continue;
        struct pollfd readable = {self->in, POLLIN, 0};
        struct timespec wait = {0, 200000000};
        if (head != tail) {
            int64_t left = ring[head % RING].due - now();
            if (left <= 0 && !full) continue;
            if (left < 20000) left = 20000;
            wait.tv_sec = left / 1000000000;
            wait.tv_nsec = left % 1000000000;
        }
        ppoll(&readable, 1, &wait, NULL);
    }
    return NULL;
}

static void show(const struct direction *self, const char *end) {
    printf("\"%s\": {\"offered_bytes\": %lu, \"offered_segments\": %lu, \"lost\": %lu, \"overflowed\": %lu, "
           "\"delivered_bytes\": %lu, \"delivered_segments\": %lu, \"blocked\": %lu, \"late_1ms\": %lu, "
           "\"late_5ms\": %lu, \"worst_late_us\": %lu}%s",
           self->name, self->offered_bytes, self->offered_segments, self->lost, self->overflowed,
           self->delivered_bytes, self->delivered_segments, self->blocked, self->late_1ms, self->late_5ms,
           self->worst_late_us, end);
}

int main(int count, char **argument) {
    if (count != 9) {
        fprintf(stderr, "usage: wan NETNS_A NETNS_B DEVICE RATE_BIT_S DELAY_US LOSS_PPM QUEUE_US SEED\n");
        return 2;
    }
    rate = atoll(argument[4]);
    delay = atoll(argument[5]) * 1000;
    loss_below = (uint64_t)((double)UINT64_MAX / 1e6 * atof(argument[6]));
    queue = atoll(argument[7]) * 1000;
    uint64_t seed = strtoull(argument[8], NULL, 10);
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int a = tun(argument[1], argument[3]), b = tun(argument[2], argument[3]);
    // Who looks for the processes at an end must not find this one.
    if (own < 0 || setns(own, CLONE_NEWNET)) fail("own network");
    static struct direction there = {.name = "a_to_b"}, back = {.name = "b_to_a"};
    there.in = back.out = a;
    there.out = back.in = b;
    there.random = seed * 2 + 1;
    back.random = ~(seed * 2 + 1);
    pthread_t threads[2];
    if (pthread_create(&threads[0], NULL, carry, &there) || pthread_create(&threads[1], NULL, carry, &back))
        fail("pthread_create");
    printf("ready\n");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("{");
        show(&there, ", ");
        show(&back, "}\n");
        fflush(stdout);
    }
    return 0;
}
