/* SPDX-License-Identifier: MIT */
/*
 * liburcu's memb flavour with inlined readers. Its headers allow that to LGPL-compatible sources,
 * which this one is (MIT), and to anybody for functions of less than ten lines, which they are.
 */
#define _LGPL_SOURCE
#define URCU_API_MAP /* keep the short names after the header */
#include <urcu/urcu-memb.h>

#define LIBURCU_IMPL bench_rcu_memb
#define LIBURCU_NAME "liburcu-memb"
#define LIBURCU_INIT rcu_init
#include "bench/rcu_impl/liburcu.h"
