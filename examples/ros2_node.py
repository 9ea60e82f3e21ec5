"""A ROS 2 node in rclpy: images in, label maps out, newest image only.

Needs a sourced ROS 2 and rtseg in the same Python; `rtseg drive ros2:/image --out ros2:/rtseg`
does this and more without ROS.

python ros2_node.py --ros-args -r image:=/camera/image_raw -p model:=csfcn_nano_360x480_fp32.onnx
"""

from array import array

import rclpy
import rtseg
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rtseg.data.ros.pixels import to_bgr
from sensor_msgs.msg import Image
from vision_msgs.msg import LabelInfo, VisionClass

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class SegmentationNode(Node):
    def __init__(self):
        super().__init__("rtseg")
        self.segment = rtseg.load(self.declare_parameter("model", "model.onnx").value)
        self.labels = self.create_publisher(Image, "rtseg/labels", 1)
        names = enumerate(self.segment.card.classes)
        names = [VisionClass(class_id=number, class_name=name) for number, name in names]
        self.info = self.create_publisher(LabelInfo, "rtseg/label_info", LATCHED)
        self.info.publish(LabelInfo(class_map=names))
        self.create_subscription(Image, "image", self.answer, NEWEST)

    def answer(self, image: Image):
        labels = self.segment(to_bgr(image))  # it has the fields that to_bgr reads
        height, width = labels.shape
        out = Image(header=image.header, height=height, width=width, encoding="mono8", step=width)
        out.data = array("B", labels.tobytes())
        self.labels.publish(out)


rclpy.init()
rclpy.spin(SegmentationNode())
