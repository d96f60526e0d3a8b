/* SPDX-License-Identifier: MIT */
/** guestram/guestram.h - all of the public API. Each header stands alone as well. */
#ifndef GUESTRAM_GUESTRAM_H
#define GUESTRAM_GUESTRAM_H

#include <guestram/channel.h>
#include <guestram/codec.h>
#include <guestram/copy_before_write.h>
#include <guestram/dirty.h>
#include <guestram/dirty_rate.h>
#include <guestram/error.h>
#include <guestram/event.h>
#include <guestram/image.h>
#include <guestram/log.h>
#include <guestram/loop.h>
#include <guestram/migrate.h>
#include <guestram/multifd.h>
#include <guestram/ram.h>
#include <guestram/ram_change.h>
#include <guestram/rcu.h>
#include <guestram/rcu_check.h>
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <guestram/rcu_qs.h>
#include <guestram/rcu_queue.h>
#include <guestram/rcu_stall.h>
#include <guestram/rculist.h>
#include <guestram/relay.h>
#include <guestram/snapshot.h>
#include <guestram/track.h>
#include <guestram/types.h>

#endif
