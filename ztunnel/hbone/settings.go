// SPDX-License-Identifier: Apache-2.0

package hbone

// applySetting takes one setting of the peer (RFC 9113, section 6.5.2).
func (c *conn) applySetting(id setting, v uint32) error {
	switch id {
	case settingHeaderTableSize:
		c.w.qmu.Lock()
		c.henc.enc.SetMaxDynamicTableSize(min(v, defaultTableSize))
		c.w.qmu.Unlock()
	case settingEnablePush:
		if v > 1 || (c.client && v == 1) {
			return connErrorf(CodeProtocol, "ENABLE_PUSH %d", v)
		}
	case settingMaxStreams:
		c.mu.Lock()
		c.peerMaxStreams = v
		c.mu.Unlock()
	case settingInitialWindow:
		return c.applyInitialWindow(v)
	case settingMaxFrameSize:
		if v < minMaxFrame || v > maxMaxFrame {
			return connErrorf(CodeProtocol, "MAX_FRAME_SIZE %d", v)
		}
		c.mu.Lock()
		c.peerMaxFrame = int(v)
		c.mu.Unlock()
		c.peerFrame.Store(int32(sendFrameSize(int(v))))
	}
	return nil
}

// applyInitialWindow also moves the windows of the streams that are open, which may make them negative.
func (c *conn) applyInitialWindow(v uint32) error {
	if v > maxWindow {
		return connErrorf(CodeFlowControl, "INITIAL_WINDOW_SIZE %d", v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delta := int(v) - c.peerWindow
	c.peerWindow = int(v)
	for _, s := range c.streams {
		if !s.addSendWindow(delta) {
			return connErrorf(CodeFlowControl, "INITIAL_WINDOW_SIZE %d overflows stream %d", v, s.id)
		}
	}
	return nil
}

// goneAway takes the peer's GOAWAY: no new streams, and those above last were not processed.
func (c *conn) goneAway(last uint32, why *ConnError) {
	c.mu.Lock()
	if c.goAway == nil || why.Code != CodeNo {
		c.goAway = why
	}
	var lost []*Stream
	if c.client {
		for id, s := range c.streams {
			if id > last {
				lost = append(lost, s)
			}
		}
	}
	idle := c.client && len(c.streams) == 0
	c.mu.Unlock()
	for _, s := range lost {
		err := &opError{phase: ErrGoAway, err: why}
		s.cut(err, err, true)
		c.forget(s)
	}
	if idle {
		c.closeGently()
	}
}
